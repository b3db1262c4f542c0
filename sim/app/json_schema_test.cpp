// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "sim/app/verbs.hpp"
#include "sim/scenario/schema.hpp"

namespace iommu {
namespace {

// Kills: an object or key that the generator forgets, a reference that leads nowhere.
TEST(JsonSchema, HasEveryKeyOfEveryObjectAndNoDanglingReference) {
  const auto schema = nlohmann::json::parse(json_schema());
  const auto objects = scenario::all_objects();
  for (const scenario::ObjectInfo* object : objects) {
    const auto& place = object == objects.front() ? schema : schema.at("definitions").at(object->name);
    EXPECT_EQ(place.at("additionalProperties"), false);
    EXPECT_EQ(place.at("properties").size(), object->keys.size()) << object->name;
    for (const scenario::KeyInfo& key : object->keys)
      EXPECT_TRUE(place.at("properties").at(key.name).contains("description")) << object->name << "." << key.name;
  }
  const std::string text = json_schema();
  const std::string prefix = "#/definitions/";
  for (std::size_t at = text.find(prefix); at != std::string::npos; at = text.find(prefix, at + 1)) {
    const std::size_t begin = at + prefix.size();
    EXPECT_TRUE(schema.at("definitions").contains(text.substr(begin, text.find('"', begin) - begin)));
  }
}

// Kills: a row that may lose its source, a required key that editors do not ask for.
TEST(JsonSchema, RowsNeedTheirSourceAndScenariosTheirKeys) {
  const auto schema = nlohmann::json::parse(json_schema());
  const auto& walkers = schema.at("definitions").at("iommu").at("properties").at("walkers");
  EXPECT_EQ(walkers.at("anyOf").at(0).at("required"), nlohmann::json({"value", "source", "mark"}));
  const auto& required = schema.at("required");
  EXPECT_NE(std::find(required.begin(), required.end(), "topology"), required.end());
}

}  // namespace
}  // namespace iommu
