//! Where things lie: one data directory per server, with fixed names inside.

use std::path::{Path, PathBuf};

use anyhow::Context;

/// Used when `--data-dir` is not given.
pub(crate) const DATA_DIR: &str = "/var/lib/perch";
/// Sockets and the namespace's pin of the default server; a reboot empties it.
const RUN_DIR: &str = "/run/perch";
/// `sockaddr_un` holds 108 bytes with the final zero.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// The names inside one server's data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Paths {
    /// Root of everything that outlives a reboot.
    pub(crate) data: PathBuf,
    /// Where sockets and the namespace's pin lie.
    pub(crate) run: PathBuf,
}

impl Paths {
    /// The default server's places, or everything below `dir`.
    ///
    /// # Errors
    /// When a socket's path would be longer than the kernel allows.
    pub(crate) fn new(dir: Option<&Path>) -> anyhow::Result<Self> {
        let paths = match dir {
            None => Self { data: DATA_DIR.into(), run: RUN_DIR.into() },
            Some(dir) => {
                let dir =
                    std::path::absolute(dir).context("could not read the current directory")?;
                Self { data: dir.clone(), run: dir }
            }
        };
        paths.check_lengths()?;
        Ok(paths)
    }

    fn check_lengths(&self) -> anyhow::Result<()> {
        let longest = self.proxy_socket();
        let length = longest.as_os_str().len();
        anyhow::ensure!(
            length <= SOCKET_PATH_BYTES_MAX,
            "the socket path {} has {length} bytes, the kernel allows {SOCKET_PATH_BYTES_MAX}; \
             choose a shorter --data-dir",
            longest.display()
        );
        Ok(())
    }

    pub(crate) fn api_socket(&self) -> PathBuf {
        self.run.join("api.sock")
    }

    pub(crate) fn proxy_socket(&self) -> PathBuf {
        self.run.join("proxy.sock")
    }

    pub(crate) fn netns_pin(&self) -> PathBuf {
        self.run.join("netns")
    }

    pub(crate) fn lock(&self) -> PathBuf {
        self.data.join("lock")
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.data.join("store.db")
    }

    pub(crate) fn images(&self) -> PathBuf {
        self.data.join("images")
    }

    pub(crate) fn init(&self) -> PathBuf {
        self.data.join("init")
    }

    pub(crate) fn machines(&self) -> PathBuf {
        self.data.join("machines")
    }

    pub(crate) fn machine(&self, id: &str) -> PathBuf {
        self.machines().join(id)
    }

    /// Parent of the Machines' cgroups below the root of each hierarchy.
    pub(crate) fn cgroup_parent(&self) -> String {
        self.tag().map_or("perch".to_owned(), |tag| format!("perch-{tag}"))
    }

    /// A short name, unique to this data directory, for links and cgroups on this host: `None` for the default one.
    pub(crate) fn tag(&self) -> Option<String> {
        use sha2::{Digest, Sha256};
        if self.data == Path::new(DATA_DIR) {
            return None;
        }
        let hash = Sha256::digest(self.data.as_os_str().as_encoded_bytes());
        Some(hash.iter().take(4).map(|byte| format!("{byte:02x}")).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_too_long_for_a_socket_is_refused_with_the_remedy() {
        let dir = PathBuf::from(format!("/tmp/{}", "x".repeat(110)));
        let error = Paths::new(Some(&dir)).expect_err("too long").to_string();
        assert!(error.contains("shorter --data-dir"), "{error}");
    }

    #[test]
    fn two_directories_have_two_tags() {
        let tag = |dir: &str| Paths::new(Some(Path::new(dir))).expect("short").tag();
        assert_ne!(tag("/a"), tag("/b"));
        assert_eq!(Paths::new(None).expect("default").tag(), None);
    }
}
