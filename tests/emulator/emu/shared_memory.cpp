#include "shared_memory.h"
#include "checker.h"
#include "state.h"
#include <cstdlib>
#include <sys/mman.h>

namespace emu {

constexpr size_t page = 4096;
// Addresses inside a block must fit 18 bits (the matrix descriptors of wgmma hold no more), and 0 must not be one.
constexpr size_t window = 256 << 10, first_address = 1024;
constexpr unsigned rank_shift = 20;

static size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

// Large dynamic parts leave little room for static variables; together they stay inside the window.
static size_t dynamic_start(size_t dynamic_bytes) { return dynamic_bytes > (188 << 10) ? 24 << 10 : 60 << 10; }

SharedMemory::SharedMemory() {
  void *p = mmap(nullptr, window + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) fail("the emulator found no memory for a block's shared memory");
  // A multiple of 1024 in the host's address is one in the shared address.
  base = reinterpret_cast<char *>(round_up(reinterpret_cast<uintptr_t>(p), 1024));
}

SharedMemory::~SharedMemory() {
  munmap(base, window + 2 * page);
  if (cells) munmap(cells, window * sizeof(Cell));
}

void SharedMemory::open(size_t dynamic_bytes) {
  if (!cells && options.check) {
    void *p = mmap(nullptr, window * sizeof(Cell), PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) fail("the emulator found no memory for the checker");
    cells = static_cast<Cell *>(p);
  }
  static_size = 0;
  dynamic_size = dynamic_bytes;
  if (opened == dynamic_bytes) return;
  size_t start = dynamic_start(dynamic_bytes), mapped = round_up(dynamic_bytes, page);
  mprotect(base, window + page, PROT_NONE);
  mprotect(base, start - page, PROT_READ | PROT_WRITE);
  if (mapped) mprotect(base + start, mapped, PROT_READ | PROT_WRITE);
  dynamic = base + start + mapped - round_up(dynamic_bytes, 1024);
  opened = dynamic_bytes;
}

void SharedMemory::poison() {
  memset(base, 0xff, static_size);
  if (dynamic_size) memset(dynamic, 0xff, round_up(dynamic_size, 1024));
}

bool SharedMemory::holds(const void *p, size_t size) const {
  auto c = static_cast<const char *>(p);
  return (c >= base && c + size <= base + static_size) || (c >= dynamic && c + size <= dynamic + dynamic_size);
}

bool SharedMemory::near(const void *p) const {
  auto c = static_cast<const char *>(p);
  return c >= base && c < base + window;
}

void SharedMemory::check_end() const {
  for (size_t i = dynamic_size; i < round_up(dynamic_size, 1024); i++)
    if (static_cast<unsigned char>(dynamic[i]) != 0xff)
      fail("write past the end of dynamic shared memory: byte %zu of %zu", i, dynamic_size);
}

void *shared_static(const void *tag, size_t size, size_t align) {
  auto found = cluster->places.find(tag);
  if (found == cluster->places.end()) {
    size_t offset = round_up(cluster->static_size, align), end = offset + size;
    if (end > 48 << 10) fail("static shared memory exceeds 48 KB");
    if (end > dynamic_start(cluster->dynamic_size) - page)
      fail("%zu bytes of static and %zu of dynamic shared memory are more than a block has", end,
           cluster->dynamic_size);
    found = cluster->places.emplace(tag, Cluster::Place{offset, size}).first;
    cluster->static_size = end;
    for (Block &block : cluster->blocks) {
      block.shared->static_size = end;
      memset(block.shared->base + offset, 0xff, size);
    }
  }
  return self()->owner->shared->base + found->second.offset;
}

void *shared_dynamic() { return self()->owner->shared->dynamic; }

Block *shared_owner(const void *p) {
  for (Block &block : cluster->blocks)
    if (block.shared->near(p)) return &block;
  return nullptr;
}

uint32_t shared_address(const void *p) {
  Thread *me = self();
  // One past the end is an address too.
  Block *block = me->owner->shared->near(p) ? me->owner : shared_owner(static_cast<const char *>(p) - 1);
  if (!block) fail("address %p is not in shared memory", p);
  uint32_t rank = block == me->owner ? 0 : block->rank + 1;
  return uint32_t(block->shared->offset(p) + first_address) | rank << rank_shift;
}

char *shared_pointer(uint32_t address, size_t size) {
  uint32_t rank = address >> rank_shift;
  if (rank > cluster->blocks.size()) fail("0x%x is not an address of shared memory", address);
  Block &block = rank ? cluster->blocks[rank - 1] : *self()->owner;
  char *p = block.shared->base + ((address & ((1u << rank_shift) - 1)) - first_address);
  if (!block.shared->holds(p, size))
    fail("shared-memory address 0x%x (%zu bytes) is outside the block's %zu static and %zu dynamic bytes", address,
         size, block.shared->static_size, block.shared->dynamic_size);
  return p;
}

} // namespace emu
