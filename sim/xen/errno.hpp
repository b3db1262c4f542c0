// SPDX-License-Identifier: Apache-2.0
// Xen's error codes, as hypercalls return them. [Xen public/errno.h]
#pragma once

#include <cstdint>

#include "sim/translation/table_driver.hpp"

namespace iommu::xen {

enum class Errno : std::int32_t {
  Ok = 0,
  NotPermitted = -1,          // EPERM
  NoEntry = -2,               // ENOENT
  InputOutput = -5,           // EIO
  TooBig = -7,                // E2BIG
  NoMemory = -12,             // ENOMEM
  AccessDenied = -13,         // EACCES
  BadAddress = -14,           // EFAULT
  Busy = -16,                 // EBUSY
  NoDevice = -19,             // ENODEV
  Invalid = -22,              // EINVAL
  NoSpace = -28,              // ENOSPC
  NotImplemented = -38,       // ENOSYS
  Unsupported = -95,          // EOPNOTSUPP
  AddressInUse = -98,         // EADDRINUSE
  AddressNotAvailable = -99,  // EADDRNOTAVAIL
};

[[nodiscard]] constexpr Errno to_errno(EditStatus status) {
  switch (status) {
    case EditStatus::Ok:
      return Errno::Ok;
    case EditStatus::NoMemory:
      return Errno::NoMemory;
    case EditStatus::AlreadyMapped:
      return Errno::AddressInUse;
    case EditStatus::NotMapped:
      return Errno::NoEntry;
    case EditStatus::OutOfRange:
      break;
  }
  return Errno::AddressNotAvailable;
}

}  // namespace iommu::xen
