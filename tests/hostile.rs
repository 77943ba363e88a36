//! Malformed and malicious input ends in one named error.
