//! Which way this server gives Machines their files: by mapped mounts, or by copies where the kernel cannot map.

use std::io;
use std::path::Path;

use perch_machine::{Ids, Probed};

/// `1`: as on a kernel that cannot map ids, to try that way on one that can.
const NO_IDMAP: &str = "PERCH_NO_IDMAP";

/// Tries what works on the file system of `dir`, unless the environment forbids the better way.
///
/// # Errors
/// When neither way works, with the reason.
pub(crate) fn choose(dir: &Path) -> io::Result<Probed> {
    if std::env::var_os(NO_IDMAP).is_some_and(|value| value == "1") {
        perch_machine::ids::attempt(dir, Ids::Shifted)?;
        return Ok(Probed { ids: Ids::Shifted, reason: format!("{NO_IDMAP} is set") });
    }
    perch_machine::probe(dir)
}

/// What was chosen, for people.
pub(crate) fn in_words(found: &Probed) -> String {
    match found.ids {
        Ids::Mapped => "mapped by the kernel".to_owned(),
        Ids::Shifted => {
            format!("one copy of each layer per app, more disk is used: {}", found.reason)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fallback_is_told_with_its_reason() {
        let found = Probed { ids: Ids::Shifted, reason: "no such call".to_owned() };
        assert!(in_words(&found).ends_with("no such call"));
    }
}
