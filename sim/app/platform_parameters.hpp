// SPDX-License-Identifier: Apache-2.0
// What a platform preset means for each module of the machine. Every function throws std::runtime_error, in one line
// that names the rows, when values that are possible each for itself cannot be together.
#pragma once

#include "sim/guest/nic_driver.hpp"
#include "sim/pcie/nic.hpp"
#include "sim/scenario/scenario.hpp"
#include "sim/tlm/endpoint.hpp"
#include "sim/tlm/iommu_parameters.hpp"
#include "sim/tlm/memory_system.hpp"
#include "sim/tlm/mmio_target.hpp"
#include "sim/tlm/root_port.hpp"
#include "sim/translation/family.hpp"

namespace iommu {

[[nodiscard]] MemoryParameters memory_parameters(const scenario::MemoryPlatform& platform);
[[nodiscard]] RootPortParameters root_port_parameters(const scenario::PciePlatform& platform);
[[nodiscard]] EndpointParameters endpoint_parameters(const scenario::PciePlatform& platform,
                                                     Picoseconds switch_latency);
[[nodiscard]] IommuParameters iommu_parameters(const scenario::IommuPlatform& platform);
[[nodiscard]] MmioParameters mmio_parameters(const scenario::IommuPlatform& platform);
// The features of the physical units.
[[nodiscard]] UnitFeatures unit_features(const scenario::IommuPlatform& platform);

[[nodiscard]] NicParameters nic_parameters(const scenario::NicWorkload& workload, Picoseconds doorbell_latency);
[[nodiscard]] guest::NicDriverSetting nic_driver_setting(const scenario::NicWorkload& workload);

}  // namespace iommu
