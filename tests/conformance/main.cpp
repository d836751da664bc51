// SPDX-FileCopyrightText: 2026 The diffmamba authors
// SPDX-License-Identifier: Apache-2.0
#include <iostream>
int main() {
  std::cout << "conformance: no operator is registered yet\n";
  return 1;
}
