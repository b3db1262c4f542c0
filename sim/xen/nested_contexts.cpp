// SPDX-License-Identifier: Apache-2.0
#include "sim/xen/nested_contexts.hpp"

namespace iommu::xen {

Task<Errno> set_guest_stage1(CpuPort& cpu, Hypervisor& xen, Domain& domain, IoContext& context, GuestStage1 stage1) {
  const ContextSetting before = context.setting_on(0);
  const TableRoot stage2 = domain.default_context->stage2;
  if (!stage1.has_process_tables() && before.stage1 == stage1.root && before.stage2 == stage2) co_return Errno::Ok;
  context.stage1 = stage1.root;
  context.stage1_entry = stage1.entry;
  context.stage2 = stage2;
  if (context.devices.empty()) co_return Errno::Ok;  // takes effect when a device is attached
  co_return co_await xen.refresh(cpu, domain, context, before);
}

InvalidationScope in_host_tags(InvalidationScope scope, RequesterId device, DomainTag host) {
  scope.domain_ignore = 0;
  if (scope.kind == InvalidationKind::DeviceTlb) {
    scope.requester = device;
    scope.domain.reset();
    return scope;
  }
  scope.domain = host;
  return scope;
}

}  // namespace iommu::xen
