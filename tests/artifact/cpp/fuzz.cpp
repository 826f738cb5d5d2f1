// Opens each of the files that are named: whatever they hold, an error is told and nothing else.
#include "fuseline.h"

#include <iostream>
#include <map>

int main(int argc, char **argv) {
  std::map<std::string, int> seen;
  for (int i = 1; i < argc; ++i) {
    try {
      fuseline::Artifact::open(argv[i]);
      ++seen["opened"];
    } catch (const fuseline::Error &error) {
      ++seen[error.code()];
    }
  }
  for (const auto &[code, count] : seen) std::cout << code << " " << count << "\n";
}
