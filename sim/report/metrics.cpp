// SPDX-License-Identifier: Apache-2.0
#include "sim/report/metrics.hpp"

#include "sim/base/check.hpp"

namespace iommu {

namespace {

std::vector<MetricInfo> list_all() {
  std::vector<MetricInfo> all;
  for (const MetricRow& row : kMetrics)
    all.push_back({std::string(row.name), row.unit, row.better, row.digits, row.shown, row.description});
  for (const MetricFamily& family : kMetricFamilies)
    for (const std::string_view member : family.members)
      all.push_back({std::string(family.prefix) + "." + std::string(member), family.unit, family.better, family.digits,
                     Shown::InFiles, family.description});
  return all;
}

std::size_t index_of_member(std::size_t family_index, std::string_view member) {
  std::size_t index = kMetrics.size();
  for (std::size_t f = 0; f < family_index; ++f) index += kMetricFamilies[f].members.size();
  for (const std::string_view candidate : kMetricFamilies[family_index].members) {
    if (candidate == member) return index;
    ++index;
  }
  SIM_CHECK(false, "no such member of this family is declared in metrics.hpp");
  return index;
}

}  // namespace

MetricId::MetricId(Family family, std::string_view member) : index_(index_of_member(family.index, member)) {}

const std::vector<MetricInfo>& all_metrics() {
  static const std::vector<MetricInfo> kAll = list_all();
  return kAll;
}

}  // namespace iommu
