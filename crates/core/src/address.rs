//! The address plan.
