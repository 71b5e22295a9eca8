"Did the style arrive, is the thing still there, and is it the same in the same place"
