#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# layering.sh must report exactly the violations planted here.
set -eu

script=$(cd "$(dirname "$0")" && pwd)/layering.sh
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
cd "$tree"
mkdir -p sim/base sim/xen/deep sim/tlm models/a models/b

cat > table <<'END'
NAME;base;FOLDER;sim/base
NAME;a;FOLDER;models/a;DEPENDS;base
NAME;b;FOLDER;models/b;DEPENDS;base
NAME;families;FOLDER;models;DEPENDS;a;b
NAME;xen;FOLDER;sim/xen;VENDOR_NEUTRAL;DEPENDS;base;TEST_DEPENDS;families
NAME;tlm;FOLDER;sim/tlm;DEPENDS;xen;LIBRARIES;PkgConfig::SYSTEMC;yaml-cpp
END

cat > sim/base/low.hpp <<'END'
#include <vector>
#include "sim/xen/high.hpp"
#include <systemc>
#  include <yaml-cpp/yaml.h>
END
cat > models/a/core.hpp <<'END'
#include "sim/base/low.hpp"
#include "models/b/core.hpp"
END
cat > models/families.cpp <<'END'
#include "models/a/core.hpp"
END
cat > sim/xen/high.hpp <<'END'
// Intel may stand in a comment, /* so may */ AMD
/* and #include "sim/tlm/top.hpp" as well
   arm */ #include "sim/base/low.hpp"
int charm, alarm, vtd_;
const char* name = "VT-d";
#include "models/families.hpp"
#include "high.hpp"
END
cat > sim/xen/high_test.cpp <<'END'
#include "models/families.hpp"
#include "models/a/core.hpp"
#include "sim/tlm/top.hpp"
int smmuv3;
END
echo '#include "sim/base/low.hpp"' > sim/xen/deep/lost.hpp
cat > sim/tlm/top.hpp <<'END'
#include <systemc>
#include <tlm_utils/simple_target_socket.h>
#include <yaml-cpp/yaml.h>
#include "sim/base/low.hpp"
END

cat > expected <<'END'
models/a/core.hpp:2: models/a may not include models/b
sim/base/low.hpp:2: sim/base may not include sim/xen
sim/base/low.hpp:3: sim/base may not use SystemC
sim/base/low.hpp:4: sim/base may not use yaml-cpp
sim/xen/deep/lost.hpp:1: sim/xen/deep is no layer's folder (CMakeLists.txt)
sim/xen/high.hpp:5: sim/xen may not name a vendor
sim/xen/high.hpp:6: sim/xen may not include models
sim/xen/high.hpp:7: include by path from the repository's root
sim/xen/high_test.cpp:3: sim/xen may not include sim/tlm
END
if "$script" table > found; then
  echo "layering.sh succeeded in spite of the violations"
  exit 1
fi
diff expected found
