//! What all hosts of a machine share, so that tests which need it for themselves take turns.

use std::fs::File;

use anyhow::{Context, Result};

/// Something that the kernel has once, whatever namespaces a host is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shared {
    /// Whether and where there is swap. Who turns theirs off gets back what others have in it.
    Swap,
}

impl Shared {
    fn name(self) -> &'static str {
        match self {
            Self::Swap => "swap",
        }
    }
}

/// The turn of one test: until this is dropped or the test's process ends.
pub(super) struct Turn {
    _locked: File,
}

impl Turn {
    pub(super) fn wait(shared: Shared) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("perch-tests-{}.lock", shared.name()));
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.with_context(|| format!("opening {}", path.display()))?;
        file.lock().with_context(|| format!("locking {}", path.display()))?;
        Ok(Self { _locked: file })
    }
}
