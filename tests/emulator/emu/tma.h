// The copy engine (TMA) as the launch and the scheduler see it.
#pragma once
#include "state.h"

namespace emu {

/// Empties its queue before a run of the cluster.
void reset_tma();
/// A thread ends: its stores arrive, and must have been waited for.
void finish_stores(Thread *thread);
/// Does one piece of the engine's work; false if there is none. Called when no thread can go on.
bool run_background();

} // namespace emu
