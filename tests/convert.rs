//! Mappings, plans and conversions, in both directions.
