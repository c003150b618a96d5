//! DNS answers.
