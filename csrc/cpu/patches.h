#pragma once

#include "parallel.h"

struct PatchesTable {};
