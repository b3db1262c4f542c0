// SPDX-License-Identifier: Apache-2.0
// No translation of the guest's own: devices stay in context 0 and use guest-physical addresses.
#include "sim/strategy/identity_space.hpp"
#include "sim/strategy/strategy.hpp"

namespace iommu::strategy {

namespace {

class Passthrough final : public DmaStrategy {
 public:
  explicit Passthrough(const StrategyEnvironment& environment) : environment_(environment) {}

  Task<xen::Errno> start(CpuPort&) override { co_return xen::Errno::Ok; }
  Task<guest::DmaSpace*> attach(CpuPort&, RequesterId device) override {
    if (!environment_.domain.devices.contains(device)) co_return nullptr;
    const Iova last(environment_.domain.setting.memory.value() - 1);
    spaces_.push_back(std::make_unique<IdentitySpace>(last));
    co_return spaces_.back().get();
  }
  [[nodiscard]] Addressing addressing(RequesterId) const override { return Addressing::GuestPhysical; }

 private:
  StrategyEnvironment environment_;
  std::vector<std::unique_ptr<IdentitySpace>> spaces_;
};

}  // namespace

const StrategyDescriptor kPassthrough{
    .name = "passthrough",
    .description = "devices use guest-physical addresses; the guest is not protected from them",
    .host_driver = [](const UnitFeatures& host, const StrategyOptions&) { return DriverOptions{.features = host}; },
    .make = [](const StrategyEnvironment& environment) -> std::unique_ptr<DmaStrategy> {
      return std::make_unique<Passthrough>(environment);
    }};

}  // namespace iommu::strategy
