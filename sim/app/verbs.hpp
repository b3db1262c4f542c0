// SPDX-License-Identifier: Apache-2.0
// What the command line can do. Each verb returns the exit code of the program.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "sim/app/explain.hpp"
#include "sim/scenario/loader.hpp"

namespace iommu {

enum ExitCode : int {
  kExitOk = 0,
  kExitUser = 1,      // a mistake of the user, or a check that failed
  kExitInternal = 2,  // a crash of a run, or files that cannot be written
};

struct RunArguments {
  std::string file;
  std::optional<std::string> out;
  std::vector<std::string> families;    // empty: as the scenario says
  std::vector<std::string> strategies;  // labels; empty: all
  std::optional<std::uint64_t> seed;
  std::uint64_t shuffle = 0;
  std::size_t jobs = 0;  // 0: as many as there are processors
  bool is_quiet = false;
};
int run_verb(const RunArguments& arguments);

int validate_verb(const std::vector<std::string>& files);
int list_verb();

enum class SchemaForm : std::uint8_t { Json, Markdown };
int schema_verb(SchemaForm form);

// Every assumption: the platform's numbers, and the tags in the sources when they are there.
int explain_assumptions_verb(const std::string& platform);
int explain_verb(const ExplainArguments& arguments);

// Where things are
// ------------------------------------------------------------------------------------------------------

// Root of the installation, from the environment; empty when unknown.
[[nodiscard]] std::string installation_root();
[[nodiscard]] std::vector<std::string> family_names();
[[nodiscard]] scenario::LoadOptions load_options();
// Reads each trace once.
[[nodiscard]] scenario::TraceCheck trace_check();
[[nodiscard]] std::string json_schema();

}  // namespace iommu
