//! Can this host carry a plane and Machines? Each check tries the thing itself where it can.

/// One finding of [`doctor`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What was looked at, for example `IPv6`.
    pub name: &'static str,
    /// Whether it is as needed.
    pub ok: bool,
    /// What was found.
    pub detail: String,
    /// What to do when not `ok`; empty otherwise.
    pub remedy: String,
}

/// Examines the host. Leaves nothing behind; takes some milliseconds.
pub fn doctor() -> Vec<Check> {
    Vec::new()
}
