//! Reading every container.
