# SPDX-License-Identifier: Apache-2.0
# See layering.sh. Reads the table, then the names of sources on standard input; prints file:line: violation.

function read_table(   line, words, count, i, key, layer) {
  while ((getline line < table) > 0) {
    count = split(line, words, ";")
    key = ""
    for (i = 1; i <= count; i++) {
      if (words[i] ~ /^[A-Z_]+$/) { key = words[i]; if (key == "VENDOR_NEUTRAL") neutral[layer] = 1 }
      else if (key == "NAME") layer = words[i]
      else if (key == "FOLDER") { folder[layer] = words[i]; layer_of[words[i]] = layer }
      else if (key == "DEPENDS") depends[layer] = depends[layer] " " words[i]
      else if (key == "TEST_DEPENDS") test_depends[layer] = test_depends[layer] " " words[i]
      else if (key == "LIBRARIES") uses[layer, words[i]] = 1
    }
  }
  close(table)
}

# Whether `to` is `from` or below it.
function reaches(from, to,   count, below, i) {
  if ((from, to) in reach) return reach[from, to]
  reach[from, to] = from == to
  count = split(depends[from], below, " ")
  for (i = 1; i <= count && !reach[from, to]; i++) reach[from, to] = reaches(below[i], to)
  return reach[from, to]
}

function may_include(from, to, is_test,   count, more, i) {
  if (reaches(from, to)) return 1
  count = is_test ? split(test_depends[from], more, " ") : 0
  for (i = 1; i <= count; i++) if (reaches(more[i], to)) return 1
  return 0
}

function may_use(from, library,   layer) {
  for (layer in folder) if (reaches(from, layer) && ((layer, library) in uses)) return 1
  return 0
}

function directory(path) { sub(/\/[^\/]*$/, "", path); return path }

function complain(file, number, message) {
  printf "%s:%d: %s\n", file, number, message
  failed = 1
}

# `text` without its comments; the state of a block comment carries over lines.
function code_of(text,   at, other, result) {
  result = ""
  while (text != "") {
    if (in_comment) {
      at = index(text, "*/")
      if (!at) return result
      in_comment = 0
      text = substr(text, at + 2)
      continue
    }
    at = index(text, "//")
    other = index(text, "/*")
    if (at && (!other || at < other)) return result substr(text, 1, at - 1)
    if (!other) return result text
    result = result substr(text, 1, other - 1) " "
    text = substr(text, other + 2)
    in_comment = 1
  }
  return result
}

function check_include(file, number, layer, is_test, path,   target) {
  if (path ~ /^(systemc|tlm|tlm_utils|sysc)([.\/]|$)/ && !may_use(layer, "PkgConfig::SYSTEMC"))
    complain(file, number, folder[layer] " may not use SystemC")
  if (path ~ /^yaml-cpp\// && !may_use(layer, "yaml-cpp"))
    complain(file, number, folder[layer] " may not use yaml-cpp")
  if (path !~ /^(sim|models)\//) return
  target = layer_of[directory(path)]
  if (target == "") complain(file, number, directory(path) " is no layer's folder (CMakeLists.txt)")
  else if (!may_include(layer, target, is_test))
    complain(file, number, folder[layer] " may not include " folder[target])
}

function check_file(file,   layer, is_test, line, number, code, path) {
  layer = layer_of[directory(file)]
  if (layer == "") { complain(file, 1, directory(file) " is no layer's folder (CMakeLists.txt)"); return }
  # Support headers are shared by the tests of one layer.
  is_test = file ~ /_(test|bench|fuzz|test_support)\.[ch]pp$/
  number = in_comment = 0
  while ((getline line < file) > 0) {
    number++
    code = code_of(line)
    if (match(code, /^[ \t]*#[ \t]*include[ \t]*["<]/)) {
      path = substr(code, RSTART + RLENGTH)
      sub(/[">].*/, "", path)
      if (code ~ /"/ && path !~ /^(sim|models)\//) complain(file, number, "include by path from the repository's root")
      check_include(file, number, layer, is_test, path)
    }
    if (neutral[layer] && !is_test && tolower(" " code " ") ~ vendor)
      complain(file, number, folder[layer] " may not name a vendor")
  }
  close(file)
}

BEGIN {
  vendor = "[^a-z0-9_](vt-?d|amd-?vi|smmu(v3)?|intel|amd|arm)[^a-z0-9_]"
  read_table()
  if (!length(folder)) { print table ": no layers"; exit 2 }
}
{ check_file($0); checked++ }
END { if (!failed) printf "%d files keep to the layers\n", checked; exit failed }
