//! Exported graphs against the eager forward.
