// SPDX-License-Identifier: Apache-2.0
#include "sim/translation/table_driver.hpp"

namespace iommu {

void TableEdit::merge(TableEdit other) {
  if (status == EditStatus::Ok) status = other.status;
  pages_done += other.pages_done;
  entries_written += other.entries_written;
  lines_touched += other.lines_touched;
  tables_allocated += other.tables_allocated;
  added |= other.added;
  modified |= other.modified;
  structure_changed |= other.structure_changed;
  freed_tables.insert(freed_tables.end(), other.freed_tables.begin(), other.freed_tables.end());
}

}  // namespace iommu
