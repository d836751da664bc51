#!/usr/bin/env bash
# SPDX-FileCopyrightText: 2026 The diffmamba authors
# SPDX-License-Identifier: Apache-2.0
# Unpacks the header-only dependencies of the build into .deps/usr, which git ignores, on a machine that has apt. The
# working tree then builds on a machine without a package registry, as GPU machines often are: scripts/gpu_verify.sh and
# cmake -DCMAKE_PREFIX_PATH="$PWD/.deps/usr" find them there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
packages=(libeigen3-dev doctest-dev nlohmann-json3-dev libcli11-dev)
mkdir -p .deps/archives
(cd .deps/archives && apt-get download -qq "${packages[@]}")
for package in .deps/archives/*.deb; do dpkg -x "$package" .deps; done
rm -rf .deps/archives .deps/usr/share/doc
du -sh .deps/usr
