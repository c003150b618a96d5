//! Limits above all Machines, as a container has them: the host's memory counts as far as the narrowest allows.

/// Memory that there is. Bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// All of it.
    pub total: u64,
    /// What can be used without anybody's loss.
    pub available: u64,
    /// Swap that is left.
    pub swap_left: u64,
}

/// One limit, and what counts against it. Bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ceiling {
    /// Beyond it the kernel kills.
    pub limit: u64,
    /// What is used below it and cannot be dropped.
    pub used: u64,
    /// Swap that is left; `None`: no limit of its own.
    pub swap_left: Option<u64>,
}

impl Room {
    /// What is left of it below all of these limits.
    #[must_use]
    pub fn below(self, ceilings: &[Ceiling]) -> Self {
        ceilings.iter().fold(self, |room, ceiling| Self {
            total: room.total.min(ceiling.limit),
            available: room.available.min(ceiling.limit.saturating_sub(ceiling.used)),
            swap_left: room.swap_left.min(ceiling.swap_left.unwrap_or(u64::MAX)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: Room = Room { total: 1000, available: 600, swap_left: 50 };

    fn ceiling(limit: u64, used: u64) -> Ceiling {
        Ceiling { limit, used, swap_left: None }
    }

    #[test]
    fn the_narrowest_of_all_limits_counts() {
        assert_eq!(HOST.below(&[]), HOST);
        let nested = [ceiling(300, 20), ceiling(500, 450)];
        assert_eq!(HOST.below(&nested), Room { total: 300, available: 50, ..HOST });
    }

    #[test]
    fn a_limit_above_what_the_host_has_changes_nothing() {
        assert_eq!(HOST.below(&[ceiling(u64::MAX, 900)]), HOST);
    }

    #[test]
    fn what_is_used_beyond_a_limit_leaves_nothing() {
        let none = Ceiling { swap_left: Some(0), ..ceiling(300, 400) };
        assert_eq!(HOST.below(&[none]), Room { total: 300, available: 0, swap_left: 0 });
    }
}
