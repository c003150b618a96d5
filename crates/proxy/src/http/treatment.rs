//! What a port's `http_options` want of answers: other fields (PX-21), compressed content (PX-87), and no silence
//! beyond a limit (PX-88).
//!
//! Ports without such wishes have none of this, and their answers are not looked at for it.

use std::rc::Rc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::edit::Edit;
use crate::control::HttpView;

/// See the module's head.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Treatment {
    edit: Edit,
    /// Silence for so long ends a request or an upgraded connection.
    pub(crate) idle: Option<Duration>,
    /// See [`super::compress`].
    pub(crate) compress: bool,
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
        Rc::new(Self { edit, idle, compress: view.compress })
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
