// SPDX-License-Identifier: Apache-2.0
// Which devices can be kept apart. Two are in one isolation group when requests of one can reach the other without
// passing the IOMMU, or when the IOMMU cannot tell their requests apart; directly or through others:
//   - a root port or switch without ACS, or a conventional PCI bridge, is above both. ACS must be complete up to the
//     root, and one port without it spoils its whole switch. [PCIe 6.0 §6.12; Linux pci_acs_path_enabled() and
//     pci_device_group(), and for switches the series "Fix incorrect iommu_groups with PCIe switches", 2025]
//   - they are functions of one slot, both without ACS. [Linux get_pci_function_alias_group()]
//   - their requests carry one id: behind a PCIe-to-PCI bridge function 0 of their bus
//     [Linux pci_for_each_dma_alias(); Xen domain_context_mapping(), DEV_TYPE_PCI], or the unit looks at no more of it.
#pragma once

#include "sim/scenario/topology.hpp"

namespace iommu::scenario {

// Every device has a place. Fills in the groups and the shared ids, and refuses groups that domains divide unless the
// scenario permits it.
void resolve_isolation(Scenario& scenario, const Complain& complain);

}  // namespace iommu::scenario
