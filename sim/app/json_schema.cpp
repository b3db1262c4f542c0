// SPDX-License-Identifier: Apache-2.0
// JSON Schema (draft 07) of scenarios, from the same declarations as the parser.
#include <nlohmann/json.hpp>

#include "sim/app/verbs.hpp"
#include "sim/scenario/schema.hpp"

namespace iommu {

namespace {

using Json = nlohmann::ordered_json;
using scenario::KeyInfo;
using scenario::Need;
using scenario::ObjectInfo;
using scenario::TypeInfo;
using scenario::ValueKind;

Json reference(const std::string& name) { return {{"$ref", "#/definitions/" + name}}; }

Json bare_schema(const TypeInfo& type) {
  switch (type.kind) {
    case ValueKind::Count:
      return {{"type", "integer"}, {"minimum", type.minimum}, {"maximum", type.maximum}};
    case ValueKind::Flag:
      return {{"type", "boolean"}};
    case ValueKind::Word:
      return {{"enum", type.words}};
    case ValueKind::Object: {
      if (type.shorthand_key.empty()) return reference(type.object->name);
      return {{"anyOf", {Json{{"type", "string"}}, reference(type.object->name)}}};
    }
    case ValueKind::Text:
    case ValueKind::Quantity:
      break;
  }
  if (type.is_family) return {{"enum", family_names()}};
  Json text{{"type", "string"}};
  if (!type.pattern.empty()) text["pattern"] = type.pattern;
  // A value of a sweep may be any scalar.
  if (type.kind == ValueKind::Text && type.pattern.empty()) text["type"] = {"string", "number", "boolean"};
  return text;
}

Json type_schema(const TypeInfo& type) {
  Json schema = bare_schema(type);
  if (type.is_row) {
    Json row{{"type", "object"},
             {"properties",
              {{"value", schema},
               {"source", {{"type", "string"}}},
               {"mark", {{"enum", {"found", "derived", "memory", "guess"}}}}}},
             {"required", {"value", "source", "mark"}},
             {"additionalProperties", false}};
    schema = Json{{"anyOf", {row, schema}}};
  }
  if (type.is_list) return {{"type", "array"}, {"items", schema}, {"minItems", type.minimum_items}};
  return schema;
}

Json key_schema(const KeyInfo& key) {
  Json schema = type_schema(key.type);
  const std::string note = key.need == Need::Defaulted && !key.default_text.empty() && key.default_text != "~"
                               ? " Default: " + key.default_text + "."
                               : "";
  const std::string only = key.only_for.empty() ? "" : " Only for " + key.only_for + ".";
  // Draft 07 ignores what stands beside $ref.
  if (schema.contains("$ref")) schema = Json{{"allOf", Json::array({schema})}};
  schema["description"] = key.doc + " (" + key.type.summary + ")." + only + note;
  return schema;
}

bool is_part_of_overlay(const std::string& name) {
  return name == "cpu" || name == "memory" || name == "pcie" || name == "iommu" || name == "costs" || name == "cache" ||
         name == "walk_cache";
}

// Keys of one kind are allowed and required where the discriminator has that value.
Json conditions(const ObjectInfo& object) {
  Json all = Json::array();
  std::vector<std::string> kinds;
  for (const KeyInfo& key : object.keys)
    for (const std::string& kind : key.kinds())
      if (std::ranges::find(kinds, kind) == kinds.end()) kinds.push_back(kind);
  for (const std::string& kind : kinds) {
    Json required = Json::array();
    Json forbidden = Json::object();
    for (const KeyInfo& key : object.keys) {
      if (key.only_for.empty()) continue;
      if (!key.is_for(kind))
        forbidden[key.name] = false;
      else if (key.need == Need::Required)
        required.push_back(key.name);
    }
    const std::string& discriminator = object.keys.front().name;
    Json then{{"properties", forbidden}};
    if (!required.empty()) then["required"] = required;
    all.push_back({{"if", {{"properties", {{discriminator, {{"const", kind}}}}}}}, {"then", then}});
  }
  return all;
}

Json object_schema(const ObjectInfo& object) {
  Json schema{{"type", "object"}, {"description", object.doc}, {"properties", Json::object()}};
  Json required = Json::array();
  for (const KeyInfo& key : object.keys) {
    schema["properties"][key.name] = key_schema(key);
    if (key.need == Need::Required && key.only_for.empty()) required.push_back(key.name);
  }
  schema["additionalProperties"] = false;
  if (!object.is_overlay && !is_part_of_overlay(object.name) && !required.empty()) schema["required"] = required;
  if (const Json all = conditions(object); !all.empty()) schema["allOf"] = all;
  return schema;
}

}  // namespace

std::string json_schema() {
  const auto objects = scenario::all_objects();
  Json schema{{"$schema", "http://json-schema.org/draft-07/schema#"}, {"title", "iommusim scenario"}};
  schema.update(object_schema(*objects.front()));
  schema["definitions"] = Json::object();
  for (const ObjectInfo* object : objects)
    if (object != objects.front()) schema["definitions"][object->name] = object_schema(*object);
  return schema.dump(2) + "\n";
}

}  // namespace iommu
