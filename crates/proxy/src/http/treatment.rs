//! What a port's `http_options` want: other fields (PX-21), compressed content (PX-87), and no silence
//! beyond a limit (PX-88).
//!
//! Ports without such wishes have none of this, and their answers are not looked at for it.

use std::rc::Rc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use perch_core::replay::cache::{By, Rule};

use super::edit::Edit;
use crate::control::{HttpView, SessionView};

/// See the module's head.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Treatment {
    edit: Edit,
    /// Silence for so long ends a request or an upgraded connection.
    pub(crate) idle: Option<Duration>,
    /// See [`super::compress`].
    pub(crate) compress: bool,
    /// Whose replays are remembered by sessions (PX-51).
    pub(crate) sessions: Vec<Rule>,
}

impl Treatment {
    /// The server has checked what is wanted: neither framing nor our own fields are changed.
    pub(crate) fn of(view: &HttpView) -> Rc<Self> {
        let mut edit = Edit::default();
        for (name, values) in &view.response_headers {
            edit.drop.push(name.clone());
            edit.set.extend(values.iter().map(|value| (name.clone(), value.clone())));
        }
        let idle = view.idle_timeout_ms.map(Duration::from_millis);
        let sessions = view.replay_cache.iter().filter_map(rule_of).collect();
        Rc::new(Self { edit, idle, compress: view.compress, sessions })
    }

    /// Changes a head of lines, whose fields are all there.
    #[cold]
    pub(super) fn edit_lines(&self, head: &mut Vec<u8>) {
        if !self.edit.drop.is_empty() {
            let head_len = head.len();
            self.edit.apply(head, head_len);
        }
    }

    /// The same for fields of HTTP/2.
    #[cold]
    pub(crate) fn edit_fields(&self, headers: &mut HeaderMap) {
        for name in &self.edit.drop {
            headers.remove(name);
        }
        for (name, value) in &self.edit.set {
            let name = HeaderName::from_bytes(name.as_bytes());
            if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(value.as_bytes())) {
                headers.append(name, value);
            }
        }
    }
}

fn rule_of(view: &SessionView) -> Option<Rule> {
    let name = view.name.clone();
    let by = if view.is_header { By::Header(name) } else { By::Cookie(name) };
    Rule::new(&view.path_prefix, by, Duration::from_secs(view.ttl_seconds), view.allow_bypass)
}
