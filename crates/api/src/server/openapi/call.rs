//! One call, as the list of calls writes it and as the description tells it.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde_json::{Map, Value, json};

use super::parameter::{self, Parameter};
use super::shapes::Shapes;
use crate::server::access::Operation;
use crate::wire::{ErrorBody, RegistryErrors};

const JSON: &str = "application/json";

type Shape = fn(&mut Shapes) -> Value;

/// A call of the API.
pub(super) struct Call {
    method: &'static str,
    path: &'static str,
    about: &'static str,
    parameters: Vec<Parameter>,
    body: Option<Body>,
    answers: Vec<Answer>,
    refusals: BTreeSet<u16>,
}

struct Body {
    media_type: &'static str,
    shape: Shape,
    required: bool,
}

struct Answer {
    code: u16,
    content: Option<(&'static str, Shape)>,
    headers: Vec<(&'static str, &'static str)>,
}

impl Call {
    /// A call with this method and path, and a sentence about what it does.
    pub(super) fn new(method: &'static str, path: &'static str, about: &'static str) -> Self {
        let (parameters, answers) = (parameter::of_path(path).collect(), Vec::new());
        Self { method, path, about, parameters, body: None, answers, refusals: BTreeSet::new() }
    }

    /// Understands this key in the query.
    pub(super) fn query(self, name: &'static str, schema: Value, about: &'static str) -> Self {
        self.with(Parameter::query(name, schema, about))
    }

    /// Adds a parameter.
    pub(super) fn with(mut self, parameter: Parameter) -> Self {
        self.parameters.push(parameter);
        self
    }

    /// Changes a Machine, which may be leased.
    pub(super) fn under_lease(self) -> Self {
        let about = "Nonce of the lease; needed while there is one.";
        let nonce = Parameter::header("fly-machine-lease-nonce", parameter::text(), about);
        self.with(nonce).refuses(&[409])
    }

    /// Needs this body.
    pub(super) fn takes<T: JsonSchema>(self) -> Self {
        self.takes_as(JSON, Shapes::request::<T>, true)
    }

    /// Reads this body if there is one.
    pub(super) fn may_take<T: JsonSchema>(self) -> Self {
        self.takes_as(JSON, Shapes::request::<T>, false)
    }

    /// Reads a body of another kind.
    pub(super) fn takes_as(
        mut self,
        media_type: &'static str,
        shape: Shape,
        required: bool,
    ) -> Self {
        self.body = Some(Body { media_type, shape, required });
        self
    }

    /// Answers this when all is well.
    pub(super) fn gives<T: JsonSchema>(self, code: u16) -> Self {
        self.gives_as(code, Some((JSON, Shapes::answer::<T>)))
    }

    /// Answers without a body when all is well.
    pub(super) fn gives_nothing(self, code: u16) -> Self {
        self.gives_as(code, None)
    }

    /// Answers a body of another kind.
    pub(super) fn gives_as(mut self, code: u16, content: Option<(&'static str, Shape)>) -> Self {
        self.answers.push(Answer { code, content, headers: Vec::new() });
        self
    }

    /// The last answer always has this header.
    pub(super) fn header(mut self, name: &'static str, about: &'static str) -> Self {
        if let Some(answer) = self.answers.last_mut() {
            answer.headers.push((name, about));
        }
        self
    }

    /// Can end with these codes, too, beside those that its shape tells.
    pub(super) fn refuses(mut self, codes: &[u16]) -> Self {
        self.refusals.extend(codes);
        self
    }

    pub(super) fn method(&self) -> &'static str {
        self.method
    }

    pub(super) fn path(&self) -> &'static str {
        self.path
    }

    /// The operation object.
    pub(super) fn describe(&self, operation: Option<&Operation>, shapes: &mut Shapes) -> Value {
        let parameters: Vec<_> = self.parameters.iter().map(Parameter::describe).collect();
        let mut described = json!({
            "operationId": self.id(),
            "tags": [self.tag()],
            "summary": self.about,
            "parameters": parameters,
            "responses": self.responses(operation, shapes),
        });
        if let Some(body) = &self.body {
            let content = json!({body.media_type: {"schema": (body.shape)(shapes)}});
            described["requestBody"] = json!({"required": body.required, "content": content});
        }
        described
    }

    fn id(&self) -> String {
        let words = self.path.split(['/', '{', '}', '_']).filter(|word| !word.is_empty());
        words.fold(self.method.to_lowercase(), |id, word| format!("{id}-{word}"))
    }

    fn tag(&self) -> &'static str {
        match self.path {
            path if path.starts_with("/v2/") => "images",
            path if path.contains("/machines") => "machines",
            path if path.starts_with("/perch/") => "perch",
            path if path.starts_with("/api/") => "organizations and releases",
            _ => "apps",
        }
    }

    fn responses(&self, operation: Option<&Operation>, shapes: &mut Shapes) -> Map<String, Value> {
        let mut responses = BTreeMap::new();
        for answer in &self.answers {
            responses.insert(answer.code, answer.describe(shapes));
        }
        for code in self.codes(operation) {
            responses.entry(code).or_insert_with(|| self.refusal(code, shapes));
        }
        responses.into_iter().map(|(code, response)| (code.to_string(), response)).collect()
    }

    /// The codes of refusals: what the call names, and what its shape tells.
    fn codes(&self, operation: Option<&Operation>) -> BTreeSet<u16> {
        let mut codes = self.refusals.clone();
        codes.extend([400, 401, 429, 500]);
        if operation.is_none_or(|it| it.changes || it.whose == "host") {
            codes.insert(403);
        }
        if operation.is_none_or(|it| it.changes) {
            // The store's: written by somebody else at the same moment, full, or ending.
            codes.extend([409, 503, 507]);
        }
        if self.path.contains('{') {
            codes.insert(404);
        }
        if self.body.is_some() {
            codes.extend([408, 413, 422]);
        }
        codes
    }

    fn refusal(&self, code: u16, shapes: &mut Shapes) -> Value {
        let schema = match self.path.starts_with("/v2/") && !matches!(code, 401 | 429) {
            true => shapes.answer::<RegistryErrors>(),
            false => shapes.answer::<ErrorBody>(),
        };
        let mut response = json!({"description": meaning(code)});
        if self.method != "HEAD" {
            response["content"] = json!({JSON: {"schema": schema}});
        }
        if code == 401 {
            let header = json!({"required": true, "description": "Basic, for `docker login`.",
                "schema": parameter::text()});
            response["headers"] = json!({"WWW-Authenticate": header});
        }
        response
    }
}

impl Answer {
    fn describe(&self, shapes: &mut Shapes) -> Value {
        let mut response = json!({"description": meaning(self.code)});
        if let Some((media_type, shape)) = self.content {
            response["content"] = json!({media_type: {"schema": shape(shapes)}});
        }
        for (name, about) in &self.headers {
            response["headers"][name] =
                json!({"required": true, "description": about, "schema": parameter::text()});
        }
        response
    }
}

/// What a status code means everywhere in the API.
fn meaning(code: u16) -> &'static str {
    match code {
        101 => "The connection is the stream from here on.",
        200 => "Done.",
        201 => "Made.",
        202 => "Accepted.",
        204 => "Done; there is nothing to say.",
        400 => {
            "The request itself is malformed: its path, query, a header, or a body that is not JSON."
        }
        401 => "No token, or none that is good.",
        403 => "The token is not good for this.",
        404 => "There is no such thing, or the token must not see it.",
        408 => "The wait ended without the wanted state, or the request's body stalled.",
        409 => "Somebody else holds the lease, or changed it at the same time.",
        412 => "It is not in a state that allows this.",
        413 => "The body is too long.",
        416 => "The piece does not begin where the last one ended.",
        422 => "Well formed, but what it says cannot be accepted.",
        426 => "The header `Upgrade: tcp` is missing.",
        429 => "The token has as many connections as one token may have.",
        500 => "Our own fault; the text names what failed.",
        502 => "Nothing answers at that address and port.",
        503 => "No capacity for it, or the server is ending; nothing was changed.",
        507 => "The server's disk is full.",
        _ => "See the text.",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_without_a_meaning_is_in_no_call() {
        for call in super::super::calls::calls() {
            let answered = call.answers.iter().map(|answer| answer.code);
            for code in call.codes(None).into_iter().chain(answered) {
                assert_ne!(meaning(code), "See the text.", "{} {}: {code}", call.method, call.path);
            }
        }
    }
}
