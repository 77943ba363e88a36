//! Pretraining around the step: recipes, schedule, what a run writes, and what it survives.

mod metrics;
mod recipe;
mod schedule;
