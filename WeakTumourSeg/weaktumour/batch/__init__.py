"""Many cases, one after the other or on many workers: `weaktumour batch`."""
