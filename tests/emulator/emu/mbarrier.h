// mbarrier: a barrier in shared memory that counts arrivals and bytes.
#pragma once
#include "state.h"

namespace emu {

/// Forgets all of them before a run of the cluster.
void reset_mbarriers();
/// The copy engine has brought `bytes`; its work up to `time` is done.
void mbarrier_complete(uint64_t *barrier, uint32_t bytes, uint32_t time);
/// For the report of a deadlock: what the barrier that `thread` waits for still lacks; empty if it waits elsewhere.
std::string state_of_wait(const Thread *thread);

} // namespace emu
