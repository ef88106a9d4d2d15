// cp.async as the launch and the scheduler see it.
#pragma once
#include "state.h"

namespace emu {

/// Empties every queue before a run of the cluster.
void reset_copies();
/// A thread ends: what it still has in flight arrives.
void finish_copies(Thread *thread);

} // namespace emu
