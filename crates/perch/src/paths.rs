//! Where things lie: one data directory per server, with fixed names inside.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use anyhow::Context;

/// Used when `--data-dir` is not given.
pub(crate) const DATA_DIR: &str = "/var/lib/perch";
/// Sockets and the namespace's pin of the default server; a reboot empties it.
const RUN_DIR: &str = "/run/perch";
/// The default server's key of its secrets.
const SECRETS_KEY: &str = "/etc/perch/secrets.key";
/// `sockaddr_un` holds 108 bytes with the final zero.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// File in the data directory that keeps the server's tag wherever the directory is moved.
const TAG_FILE: &str = "tag";

/// How the names of what a retired proxy has begin.
const RETIRED: &str = "px-";

/// The names inside one server's data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Paths {
    /// Root of everything that outlives a reboot, without links and dots.
    pub(crate) data: PathBuf,
    /// Where sockets and the namespace's pin lie.
    pub(crate) run: PathBuf,
    tag: Option<String>,
}

impl Paths {
    /// How directories begin that keep what a restore replaced.
    pub(crate) const BEFORE_RESTORE: &str = "before-restore-";

    /// The default server's places, or everything below `dir`. The directory need not be there; however it is spelled,
    /// it is the same server's.
    ///
    /// # Errors
    /// When the path cannot be followed, or a socket's path would be longer than the kernel allows.
    pub(crate) fn new(dir: Option<&Path>) -> anyhow::Result<Self> {
        let default = real(Path::new(DATA_DIR))?;
        let data = dir.map_or_else(|| Ok(default.clone()), real)?;
        let paths = if data == default {
            Self { data, run: RUN_DIR.into(), tag: None }
        } else {
            let tag = Some(kept_tag(&data).unwrap_or_else(|| tag_of(&data)));
            Self { run: data.clone(), data, tag }
        };
        paths.check_lengths()?;
        Ok(paths)
    }

    /// Writes the tag down, so that it stays when the directory is moved or renamed.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn keep_tag(&self) -> io::Result<()> {
        let Some(tag) = &self.tag else { return Ok(()) };
        if kept_tag(&self.data).as_ref() == Some(tag) {
            return Ok(());
        }
        let draft = self.data.join("tag.new");
        std::fs::write(&draft, format!("{tag} {}\n", std::fs::metadata(&self.data)?.ino()))?;
        std::fs::rename(draft, self.data.join(TAG_FILE))
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

    /// Where it is written down which process the proxy is.
    pub(crate) fn proxy_record(&self) -> PathBuf {
        self.run.join("proxy.json")
    }

    /// How the socket of a retired proxy is called; it is no longer than the other.
    pub(crate) fn retired_socket(&self, pid: u32) -> PathBuf {
        self.run.join(format!("{RETIRED}{pid}"))
    }

    /// Where it is written down which process it is.
    pub(crate) fn retired_record(&self, pid: u32) -> PathBuf {
        self.run.join(format!("{RETIRED}{pid}.json"))
    }

    /// The process ids of all retired proxies of which something is left.
    pub(crate) fn retired_proxies(&self) -> BTreeSet<u32> {
        let entries = std::fs::read_dir(&self.run).into_iter().flatten().flatten();
        let number =
            |name: &str| name.strip_prefix(RETIRED)?.trim_end_matches(".json").parse().ok();
        entries.filter_map(|entry| number(entry.file_name().to_str()?)).collect()
    }

    /// Where `perch server --upgrade` waits for the server.
    pub(crate) fn upgrade_socket(&self) -> PathBuf {
        self.run.join("upg.sock")
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

    pub(crate) fn ballast(&self) -> PathBuf {
        self.data.join("ballast")
    }

    pub(crate) fn images(&self) -> PathBuf {
        self.data.join("images")
    }

    pub(crate) fn init(&self) -> PathBuf {
        self.data.join("init")
    }

    pub(crate) fn volumes(&self) -> PathBuf {
        self.data.join("volumes")
    }

    pub(crate) fn snapshots(&self) -> PathBuf {
        self.data.join("snapshots")
    }

    pub(crate) fn machines(&self) -> PathBuf {
        self.data.join("machines")
    }

    /// Swap that `perch swap` made here: a file, or a note of a device of compressed memory and a node of it.
    pub(crate) fn swap_file(&self) -> PathBuf {
        self.data.join("swap")
    }

    pub(crate) fn swap_zram(&self) -> PathBuf {
        self.data.join("swap.zram")
    }

    pub(crate) fn swap_node(&self) -> PathBuf {
        self.data.join("swap.device")
    }

    /// There while a restore puts its data in place of the former ones.
    pub(crate) fn restore_swap(&self) -> PathBuf {
        self.data.join("restore.swap")
    }

    pub(crate) fn machine(&self, id: &str) -> PathBuf {
        self.machines().join(id)
    }

    /// The key of the secrets, if the configuration names no other place: never in the data directory, so that no copy
    /// of that has it.
    pub(crate) fn secrets_key(&self) -> PathBuf {
        match self.tag {
            None => SECRETS_KEY.into(),
            Some(_) => self.data.with_added_extension("secrets.key"),
        }
    }

    /// The keys that sign `Fly-Src`.
    pub(crate) fn signing_key(&self) -> PathBuf {
        self.data.join("fly-src.key")
    }

    /// Parent of the Machines' cgroups below the root of each hierarchy, as the last server chose it.
    pub(crate) fn cgroup_parent(&self) -> String {
        let chosen = std::fs::read_to_string(self.cgroup_parent_file()).ok();
        chosen.filter(|name| !name.is_empty()).unwrap_or_else(|| self.cgroup_parent_default())
    }

    /// Where a server writes down its choice.
    pub(crate) fn cgroup_parent_file(&self) -> PathBuf {
        self.data.join("cgroup-parent")
    }

    /// The parent on hosts where no service manager gives us one.
    pub(crate) fn cgroup_parent_default(&self) -> String {
        self.tag().map_or("perch".to_owned(), |tag| format!("perch-{tag}"))
    }

    /// A short name, unique to this data directory, for links and cgroups on this host: `None` for the default one.
    pub(crate) fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }
}

/// The path without links and dots; what is not there yet is taken as it is spelled.
pub(crate) fn real(dir: &Path) -> anyhow::Result<PathBuf> {
    let dir = std::path::absolute(dir).context("could not read the current directory")?;
    for there in dir.ancestors() {
        match there.canonicalize() {
            Ok(real) => return Ok(extend(real, dir.strip_prefix(there).unwrap_or(Path::new("")))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(error).with_context(|| format!("could not follow {}", dir.display()));
            }
        }
    }
    Ok(dir)
}

fn extend(mut base: PathBuf, rest: &Path) -> PathBuf {
    for part in rest.components() {
        match part {
            Component::Normal(name) => base.push(name),
            Component::ParentDir => drop(base.pop()),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    base
}

fn tag_of(data: &Path) -> String {
    use sha2::{Digest, Sha256};
    let hash = Sha256::digest(data.as_os_str().as_encoded_bytes());
    hash.iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

/// The tag that lies in the directory, unless it came there with a copy of another directory.
fn kept_tag(data: &Path) -> Option<String> {
    let text = std::fs::read_to_string(data.join(TAG_FILE)).ok()?;
    let (tag, inode) = text.trim_end().split_once(' ')?;
    let own = inode.parse() == Ok(std::fs::metadata(data).ok()?.ino());
    let valid = tag.len() == 8 && tag.bytes().all(|byte| byte.is_ascii_hexdigit());
    (own && valid).then(|| tag.to_owned())
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
        let tag = |dir: &str| paths(Path::new(dir)).tag().map(str::to_owned);
        assert_ne!(tag("/a"), tag("/b"));
        assert_eq!(Paths::new(None).expect("default").tag(), None);
    }

    fn paths(dir: &Path) -> Paths {
        Paths::new(Some(dir)).expect("short")
    }

    #[test]
    fn the_key_of_the_secrets_lies_outside_the_data_directory() {
        assert_eq!(Paths::new(None).expect("default").secrets_key(), Path::new(SECRETS_KEY));
        assert_eq!(paths(Path::new("/srv/a.b/")).secrets_key(), Path::new("/srv/a.b.secrets.key"));
    }

    #[test]
    fn one_directory_is_one_server_however_it_is_spelled() {
        let root = tempfile::tempdir().expect("a temporary directory");
        std::os::unix::fs::symlink(root.path(), root.path().join("link")).expect("a link");
        let plain = paths(&root.path().join("data"));
        let spelled = |rest: &str| paths(&root.path().join(rest));
        for place in ["data/", "./data", "link/data", "link/link/data", "x/../data"] {
            assert_eq!(spelled(place), plain, "{place}, before the directory is there");
        }
        std::fs::create_dir(&plain.data).expect("it is made");
        assert_eq!(spelled("link/data"), plain);
        assert_eq!(spelled("data/../data"), plain);
    }

    #[test]
    fn the_default_directory_is_the_default_server_also_when_it_is_named() {
        let default = Paths::new(None).expect("default");
        assert_eq!(paths(Path::new(DATA_DIR)), default);
        assert_eq!(paths(Path::new("/var/lib/../lib/perch/")), default);
    }

    #[test]
    fn a_tag_moves_with_its_directory_and_not_with_a_copy() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let [first, moved, copy] = ["first", "moved", "copy"].map(|name| root.path().join(name));
        std::fs::create_dir(&first).expect("it is made");
        std::fs::create_dir(&copy).expect("it is made");
        let tag = paths(&first).tag().map(str::to_owned);
        paths(&first).keep_tag().expect("it can be written");
        std::fs::copy(first.join(TAG_FILE), copy.join(TAG_FILE)).expect("it is copied");
        std::fs::rename(&first, &moved).expect("it is moved");
        assert_eq!(paths(&moved).tag().map(str::to_owned), tag);
        assert_ne!(paths(&copy).tag().map(str::to_owned), tag);
        std::fs::write(moved.join(TAG_FILE), "../../etc 1").expect("it can be written");
        assert_ne!(paths(&moved).tag().map(str::to_owned), tag);
    }
}
