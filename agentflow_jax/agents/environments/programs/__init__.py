"""An environment whose one tool runs programs that call its tools as functions."""
