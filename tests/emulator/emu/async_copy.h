// cp.async, and what the scheduler must know of work in the background.
#pragma once
#include "state.h"

namespace emu {

/// Empties every queue before a run of the cluster.
void reset_copies();
/// A thread ends: what it still has in flight arrives.
void finish_copies(Thread *thread);
/// Does one piece of work of the copy engine; false if there is none. Called when no thread can go on.
bool run_background();

} // namespace emu
