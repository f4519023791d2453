// What one call of the patches room needs, as raw pointers and sizes. No torch here: see common/binding.cpp.
#pragma once

#include "common/parallel.h"

// Position id of channel c in sample n stands at map + n * sn + c * sc + (id / w) * sh + (id % w) * sw, in elements.
struct PatchMap {
  void* map;           // gather reads it, scatter writes it
  void* rows;          // (n, p, c), dense: gather writes them, scatter reads them
  const int64_t* ids;  // (p); looked at before anything is read or written
  int64_t n, c, p, positions, w, sn, sc, sh, sw;
  int64_t dtype;   // of map and rows
  int64_t unique;  // scatter: no position twice among ids
  int64_t zero;    // scatter: bytes from `map` on to fill with zeros first; 0: the rows are added to what is there
};

struct PatchesArgs {
  const PatchMap* maps;
  int64_t count;
};

struct PatchesTable {  // one per instruction set; see common/binding.h for what each returns
  int (*gather)(const PatchesArgs&, ParallelFor);
  int (*scatter)(const PatchesArgs&, ParallelFor);
};
