// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
// Files come with diffmamba::io.
#include <diffmamba/io.hpp>
#include <filesystem>
#include <iostream>

namespace dm = diffmamba;

int main() {
  const auto path = std::filesystem::temp_directory_path() / "diffmamba_package_test.safetensors";
  const dm::Tensor<float, 2> written({3, 4}, 0.5f);
  dm::save_safetensors(path, {{"weight", written}});
  const auto read = dm::SafetensorsFile(path).tensor<float, 2>("weight");
  std::filesystem::remove(path);
  std::cout << "read back a tensor of shape " << dm::shape(read) << "\n";
  return read(2, 3) == 0.5f ? 0 : 1;
}
