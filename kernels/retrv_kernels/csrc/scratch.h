#pragma once

#include <cstdint>
#include <cstdlib>

namespace retrv {
namespace {

inline int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// Temporary memory of one thread, aligned to cache lines. Kernels cannot throw, so running out of
// memory ends the process.
class Scratch {
 public:
  explicit Scratch(int64_t bytes)
      : bytes_(std::aligned_alloc(64, static_cast<size_t>(round_up(bytes + 1, 64)))) {
    if (!bytes_) std::abort();
  }
  ~Scratch() { std::free(bytes_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  template <class T>
  T* as() {
    return static_cast<T*>(bytes_);
  }

 private:
  void* bytes_;
};

class Floats : public Scratch {
 public:
  explicit Floats(int64_t count) : Scratch(count * static_cast<int64_t>(sizeof(float))) {}
  operator float*() { return as<float>(); }
};

}  // namespace
}  // namespace retrv
