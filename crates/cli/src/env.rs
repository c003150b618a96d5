//! What the program takes from outside its arguments: environment variables and the directory.
//!
//! All names of variables are here. `FLY_API_TOKEN` and `~/.fly` belong to another service and are
//! not read by this slice, which speaks over the Unix socket only and needs no token.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// The server's API socket.
pub(crate) const SOCKET: &str = "PERCH_SOCKET";
/// The app to act on, after `--app` and before `fly.toml` (CL-01).
pub(crate) const APP: &str = "FLY_APP";
/// The organization, after `--org`.
pub(crate) const ORG: [&str; 2] = ["FLY_ORG", "FLY_ORGANIZATION"];
/// The region, after `--region`.
pub(crate) const REGION: &str = "FLY_REGION";
/// The Docker Engine's socket, when it is not the default; only `unix://` is understood.
pub(crate) const DOCKER_HOST: &str = "DOCKER_HOST";
/// Where programs such as `docker` and `buildah` are looked for.
pub(crate) const PATH: &str = "PATH";

const SOCKET_DEFAULT: &str = "/run/perch/api.sock";

/// Environment variables and working directory of one invocation.
#[derive(Debug, Clone)]
pub struct Environment {
    /// The directory that relative paths start from.
    pub dir: PathBuf,
    /// Variables by name; those that are not UTF-8 are left out.
    pub vars: BTreeMap<String, String>,
}

impl Environment {
    /// Reads variables and working directory of the running process; an unreadable working
    /// directory becomes `.`, so that commands which need none still work.
    pub fn of_process() -> Self {
        let utf8 = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Self {
            dir: std::env::current_dir().unwrap_or_else(|_| PathBuf::from(".")),
            vars: std::env::vars_os().filter_map(utf8).collect(),
        }
    }

    /// A variable's value; one that is set but empty counts as unset.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.vars.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    pub(crate) fn socket(&self) -> PathBuf {
        PathBuf::from(self.get(SOCKET).unwrap_or(SOCKET_DEFAULT))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(vars: &[(&str, &str)]) -> Environment {
        let vars = vars.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Environment { dir: PathBuf::from("/"), vars }
    }

    #[test]
    fn an_empty_socket_variable_counts_as_unset() {
        assert_eq!(environment(&[(SOCKET, "")]).socket(), PathBuf::from(SOCKET_DEFAULT));
        assert_eq!(environment(&[(SOCKET, "/x")]).socket(), PathBuf::from("/x"));
    }
}
