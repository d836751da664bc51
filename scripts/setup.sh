# SPDX-FileCopyrightText: 2026 The diffmamba authors
# SPDX-License-Identifier: Apache-2.0
# What demo.sh, test.sh and CI have in common; sourced by them. Installs what is missing with the system's package
# manager and builds. Asks nothing.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { printf '\n== %s\n' "$*"; }
die() { printf '%s\n' "$*" >&2; exit 1; }

as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo "$@"
  else
    die "Missing packages must be installed by root, and there is no sudo: run as root: $*"
  fi
}

# Packages of a purpose (build, test, demo, bench, ci) for a package manager.
packages_for() {
  case $1:$2 in
    apt-get:build) echo g++ cmake ninja-build libeigen3-dev nlohmann-json3-dev libcli11-dev ;;
    apt-get:test) echo doctest-dev ;;
    apt-get:demo) echo gnuplot-nox ;;
    apt-get:bench) echo libbenchmark-dev libopenblas-dev ;;
    apt-get:ci) echo ccache clang-16 libclang-rt-16-dev libomp-16-dev ;;
    dnf:build) echo gcc-c++ cmake ninja-build eigen3-devel json-devel cli11-devel ;;
    dnf:test) echo doctest-devel ;;
    dnf:demo) echo gnuplot ;;
    dnf:bench) echo google-benchmark-devel openblas-devel ;;
    dnf:ci) echo ccache clang compiler-rt libomp-devel ;;
    brew:build) echo cmake ninja eigen nlohmann-json cli11 libomp ;;
    brew:test) echo doctest ;;
    brew:demo) echo gnuplot ;;
    brew:bench) echo google-benchmark openblas ;;
    brew:ci) echo ccache llvm ;;
  esac
}

# setup PURPOSE...: installs the packages of these purposes that are not there. A machine that has them all needs no
# network and no root.
setup() {
  local manager purpose package missing=()
  for manager in apt-get dnf brew none; do
    if command -v $manager >/dev/null; then break; fi
  done
  if [ $manager = none ]; then
    echo "No apt-get, dnf or brew here: assuming that a C++20 compiler, CMake 3.24, Ninja, Eigen 3.4, nlohmann-json, CLI11 and doctest are installed."
    return
  fi
  for purpose in "$@"; do
    for package in $(packages_for $manager "$purpose"); do
      case $manager in
        apt-get) [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] ;;
        dnf) rpm -q --whatprovides "$package" >/dev/null 2>&1 ;;
        brew) brew list --versions "$package" >/dev/null ;;
      esac || missing+=("$package")
    done
  done
  # A compiler or CMake that was not installed as a package serves as well.
  local wanted=("${missing[@]}")
  missing=()
  for package in "${wanted[@]}"; do
    case $package in
      cmake | ccache | g++ | gnuplot) command -v "$package" >/dev/null && continue ;;
      gnuplot-nox) command -v gnuplot >/dev/null && continue ;;
      ninja | ninja-build) command -v ninja >/dev/null && continue ;;
    esac
    missing+=("$package")
  done
  [ ${#missing[@]} = 0 ] && return
  say "installing ${missing[*]}"
  case $manager in
    apt-get)
      as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq update </dev/null &&
        as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install "${missing[@]}" </dev/null
      ;;
    dnf) as_root dnf -q -y install "${missing[@]}" </dev/null ;;
    brew) HOMEBREW_NO_AUTO_UPDATE=1 brew install -q "${missing[@]}" </dev/null ;;
  esac || die "The packages could not be installed: ${missing[*]}"
}

# At least the given version? version_at_least 3.24 3.25.1
version_at_least() { [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]; }

# Older systems have a CMake before 3.24; a current one comes as a Python package.
find_cmake() {
  local version
  version=$(cmake --version 2>/dev/null | head -n 1 | grep -o '[0-9][0-9.]*' || true)
  if [ -n "$version" ] && version_at_least 3.24 "$version"; then return; fi
  say "CMake ${version:-is absent}, 3.24 or later is needed: installing one into .deps"
  [ -x "$root/.deps/cmake/bin/cmake" ] || {
    python3 -m venv "$root/.deps/cmake" && "$root/.deps/cmake/bin/pip" -q install cmake
  } || die "CMake 3.24 or later is needed."
  PATH=$root/.deps/cmake/bin:$PATH
}

# g++ 12 or clang++ 16 and later; CXX decides if it is set.
find_compiler() {
  local candidate version
  [ -n "${CXX:-}" ] && return
  for candidate in g++ g++-14 g++-13 g++-12 clang++ clang++-19 clang++-18 clang++-17 clang++-16; do
    version=$($candidate -dumpversion 2>/dev/null) || continue
    case $candidate in
      g++*) version_at_least 12 "$version" || continue ;;
      *) version_at_least 16 "$version" || continue ;;
    esac
    export CXX=$candidate
    return
  done
  die "No C++20 compiler was found; g++ 12 or clang 16 is needed. Set CXX to one."
}

# As many compilers as there are cores, and 2 GiB of memory for each.
jobs() {
  local cores memory
  cores=$(nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 2)
  memory=$(awk '/MemAvailable/ { print int($2 / 2097152) }' /proc/meminfo 2>/dev/null || true)
  [ -n "$memory" ] && [ "$memory" -lt "$cores" ] && cores=$memory
  [ "$cores" -lt 1 ] && cores=1
  echo "$cores"
}

# configure FOLDER OPTION...: below build/, with Ninja, Release unless an option says otherwise.
configure() {
  local folder=$root/build/$1
  shift
  find_cmake
  find_compiler
  local launcher=()
  if command -v ccache >/dev/null; then
    launcher=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
    export CCACHE_BASEDIR=$root CCACHE_NOHASHDIR=1  # another clone of the same sources finds what this one compiled
  fi
  local type=(-DCMAKE_BUILD_TYPE=Release)
  [[ " $* " == *" --preset "* ]] && type=()  # a preset says itself
  cmake -S "$root" -B "$folder" -G Ninja "${type[@]}" "${launcher[@]}" "$@"
}

# build FOLDER [TARGET...]
build() {
  local folder=$root/build/$1
  shift
  cmake --build "$folder" -j "$(jobs)" ${1:+--target "$@"} -- -k 0  # show every mistake at once
}
