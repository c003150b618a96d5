//! What the program takes from outside its arguments: environment variables and the directory.
//!
//! All names of variables are here. `~/.fly` belongs to another service and is never read; of
//! `FLY_API_TOKEN` only what cannot be that service's is (DESIGN 3).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use perch_api::client::Client;

/// The server's address, such as `https://perch.example:4280`; before every other one.
pub(crate) const API: &str = "PERCH_API";
/// flyctl's variable for the same, after [`SOCKET`].
pub(crate) const FLAPS_BASE_URL: &str = "FLY_FLAPS_BASE_URL";
/// Certificates to trust instead of the system's, as Go programs have it.
pub(crate) const ROOTS: &str = "SSL_CERT_FILE";
/// The token for an address.
pub(crate) const TOKEN: &str = "PERCH_TOKEN";
/// flyctl's variable for the same, if its value can be one of ours.
pub(crate) const FLY_TOKEN: &str = "FLY_API_TOKEN";
/// How values of [`FLY_TOKEN`] begin that belong to Fly.
const FLY_TOKEN_STARTS: [&str; 2] = ["fm", "FlyV1"];
/// Where the configuration of users lies, else in `.config` in the home directory.
const CONFIG_HOME: &str = "XDG_CONFIG_HOME";
const HOME: &str = "HOME";
/// The server's API socket.
pub(crate) const SOCKET: &str = "PERCH_SOCKET";
/// The app to act on, after `--app` and before `fly.toml` (CL-01).
pub(crate) const APP: &str = "FLY_APP";
/// The organization, after `--org`.
pub(crate) const ORG: [&str; 2] = ["FLY_ORG", "FLY_ORGANIZATION"];
/// The region, after `--region`.
pub(crate) const REGION: &str = "FLY_REGION";
/// Output for programs, as `--json`.
pub(crate) const JSON: &str = "FLY_JSON";
/// The program that shows what is too wide for the terminal.
pub(crate) const PAGER: &str = "PAGER";
/// The Docker Engine's socket, when it is not the default; only `unix://` is understood.
pub(crate) const DOCKER_HOST: &str = "DOCKER_HOST";
/// Where programs such as `docker` and `buildah` are looked for.
pub(crate) const PATH: &str = "PATH";

/// What the terminal can; `dumb` ones get plain lines.
pub(crate) const TERM: &str = "TERM";
/// Set to anything: no colours.
pub(crate) const NO_COLOR: &str = "NO_COLOR";
/// `0`: no colours.
pub(crate) const CLICOLOR: &str = "CLICOLOR";
/// Anything but `0`: colours, into pipes too.
pub(crate) const CLICOLOR_FORCE: &str = "CLICOLOR_FORCE";

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

    /// The same with the token of `--access-token`, which comes before every other. One of Fly's is none of
    /// ours here either.
    pub(crate) fn with_token(&self, token: Option<&str>) -> Cow<'_, Self> {
        let ours = token.filter(|token| !FLY_TOKEN_STARTS.iter().any(|s| token.starts_with(s)));
        let Some(token) = ours else { return Cow::Borrowed(self) };
        let mut env = self.clone();
        env.vars.insert(TOKEN.to_owned(), token.to_owned());
        Cow::Owned(env)
    }

    /// A variable's value; one that is set but empty counts as unset.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.vars.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Whether a variable says yes, in flyctl's words.
    pub(crate) fn is_truthy(&self, name: &str) -> bool {
        let value = self.get(name).unwrap_or_default().to_lowercase();
        matches!(value.as_str(), "1" | "ok" | "t" | "true")
    }

    /// The server that these variables mean.
    pub(crate) fn client(&self) -> Client {
        match self.url() {
            Some(url) => Client::remote(url, self.token(), self.get(ROOTS).map(PathBuf::from)),
            None => Client::unix(self.socket()),
        }
    }

    /// The token that calls carry; over the socket they carry none.
    pub(crate) fn token_in_use(&self) -> Option<String> {
        self.url().and_then(|_| self.token())
    }

    /// The socket that calls go to, unless they go to an address.
    pub(crate) fn socket_in_use(&self) -> Option<PathBuf> {
        self.url().is_none().then(|| self.socket())
    }

    fn url(&self) -> Option<&str> {
        let flaps = || if self.get(SOCKET).is_none() { self.get(FLAPS_BASE_URL) } else { None };
        self.get(API).or_else(flaps)
    }

    fn socket(&self) -> PathBuf {
        PathBuf::from(self.get(SOCKET).unwrap_or(SOCKET_DEFAULT))
    }

    fn token(&self) -> Option<String> {
        let of_fly = self
            .get(FLY_TOKEN)
            .filter(|token| !FLY_TOKEN_STARTS.iter().any(|s| token.starts_with(s)));
        let given = self.get(TOKEN).or(of_fly);
        given.map(str::to_owned).or_else(|| own_token(&self.token_file()?))
    }

    fn token_file(&self) -> Option<PathBuf> {
        let config = self.get(CONFIG_HOME).map(PathBuf::from);
        let config = config.or_else(|| Some(Path::new(self.get(HOME)?).join(".config")))?;
        Some(config.join("perch/token"))
    }
}

/// The token in a file, unless others can read it: then everybody has it, and it counts as none.
fn own_token(file: &Path) -> Option<String> {
    let private = std::fs::metadata(file).ok()?.mode() & 0o077 == 0;
    let text = private.then(|| std::fs::read_to_string(file).ok()).flatten()?;
    Some(text.trim().to_owned()).filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_token_of_fly_is_never_used() {
        for token in ["fm2_abc", "fm1r_abc", "FlyV1 fm2_abc"] {
            assert_eq!(environment(&[(FLY_TOKEN, token)]).token(), None, "{token}");
        }
        let both = environment(&[(FLY_TOKEN, "b"), (TOKEN, "a")]);
        assert_eq!(both.token().as_deref(), Some("a"));
        assert_eq!(environment(&[(FLY_TOKEN, "b")]).token().as_deref(), Some("b"));
    }

    #[test]
    fn a_token_on_the_command_line_comes_first_unless_it_is_of_fly() {
        let env = environment(&[(TOKEN, "a")]);
        assert_eq!(env.with_token(Some("b")).token().as_deref(), Some("b"));
        assert_eq!(env.with_token(Some("fm2_b")).token().as_deref(), Some("a"));
        assert_eq!(env.with_token(None).token().as_deref(), Some("a"));
    }

    #[test]
    fn a_token_in_a_file_counts_when_the_file_is_private() {
        let home = tempfile::tempdir().expect("a temporary directory");
        let file = home.path().join(".config/perch/token");
        std::fs::create_dir_all(file.parent().expect("one")).expect("it is made");
        std::fs::write(&file, "perch_1\n").expect("it is written");
        let environment = environment(&[(HOME, home.path().to_str().expect("text"))]);
        for (mode, wanted) in [(0o644, None), (0o640, None), (0o600, Some("perch_1"))] {
            std::fs::set_permissions(&file, PermissionsExt::from_mode(mode)).expect("ours");
            assert_eq!(environment.token().as_deref(), wanted, "mode {mode:o}");
        }
    }

    #[test]
    fn an_address_of_ours_comes_before_a_socket_and_a_socket_before_flys() {
        let meant = |vars: &[(&str, &str)]| format!("{:?}", environment(vars).client());
        assert!(meant(&[]).contains(SOCKET_DEFAULT));
        assert!(meant(&[(FLAPS_BASE_URL, "http://f")]).contains("http://f"));
        let both = [(FLAPS_BASE_URL, "http://f"), (SOCKET, "/s")];
        assert!(meant(&both).contains("/s"));
        let all = [(FLAPS_BASE_URL, "http://f"), (SOCKET, "/s"), (API, "http://p")];
        assert!(meant(&all).contains("http://p"));
    }

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
