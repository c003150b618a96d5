//! System calls that have no safe wrapper.
