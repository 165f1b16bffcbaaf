//! HTTP client of the Hub, with explanations of its error responses.

use std::io::Read;
use std::time::Duration;

use serde::Deserialize;
use ureq::http::{HeaderMap, Response};
use ureq::typestate::WithoutBody;
use ureq::{Agent, Body};

use super::name::{Name, RepoKind, is_commit};

/// Maximum size of a file list in bytes.
const LARGEST_LIST: u64 = 64 << 20;
/// Timeout for a whole file list, as a multiple of the timeout per read. Some servers send it slowly.
const WHOLE_LIST: u32 = 10;
/// Maximum number of requests in a chain of redirects.
const REDIRECTS: usize = 6;

/// Failed request.
#[derive(Debug, Clone)]
pub(super) enum HubFailure {
    /// May succeed when retried: connection error, timeout, overloaded or failing server.
    Transient(String),
    /// Will fail again.
    Permanent(String),
}

/// Response of the Hub about a repository at a revision.
#[derive(Debug, Deserialize)]
pub(super) struct Listing {
    pub(super) sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Debug, Deserialize)]
struct Sibling {
    rfilename: String,
}

impl Listing {
    /// Return the paths of the files.
    pub(super) fn files(self) -> Vec<String> {
        self.siblings.into_iter().map(|sibling| sibling.rfilename).collect()
    }
}

/// Metadata of a file, from a HEAD request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileMetadata {
    /// ETag: the name of the blob. SHA-256 of large files, git's id of others.
    pub(super) etag: String,
    /// Size in bytes.
    pub(super) size: u64,
    /// Download URL.
    url: String,
}

/// HTTP client of the Hub. Does not implement `Debug`, since it holds the token.
#[derive(Clone)]
pub(super) struct HubClient {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
    patience: Duration,
}

impl HubClient {
    /// Create a client. `patience` is the timeout for connecting, for each response and for each read.
    pub(super) fn new(endpoint: &str, token: Option<String>, patience: Duration) -> Self {
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(patience))
            .timeout_recv_response(Some(patience))
            .timeout_per_read(Some(patience))
            .user_agent(concat!("tempering/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        Self { agent, endpoint: endpoint.trim_end_matches('/').to_string(), token, patience }
    }

    /// Requests the commit and the file list of a revision.
    pub(super) fn list(&self, name: &Name) -> Result<Listing, HubFailure> {
        let revision = encoded(name.revision(), false);
        let url = format!("{}/api/{}/{}/revision/{revision}", self.endpoint, name.kind.plural(), name.repository);
        let longest = Some(WHOLE_LIST * self.patience);
        let ask = |url: &str| self.agent.get(url).config().timeout_recv_body(longest).build();
        let (_, mut answer) = self.follow(&url, name, &ask)?;
        let body = answer.body_mut().with_config().limit(LARGEST_LIST).read_to_vec();
        let body = body.map_err(|error| HubFailure::Transient(format!("{url}: {error}")))?;
        let strange = |why: String| {
            HubFailure::Permanent(format!("{url}: not a response of the Hugging Face Hub ({why}): check HF_ENDPOINT"))
        };
        let listing: Listing = serde_json::from_slice(&body).map_err(|error| strange(error.to_string()))?;
        if is_commit(&listing.sha) {
            Ok(listing)
        } else {
            Err(strange(format!("the commit hash is {:?}", listing.sha)))
        }
    }

    /// Requests the metadata of a file.
    pub(super) fn head(&self, name: &Name, commit: &str, file: &str) -> Result<FileMetadata, HubFailure> {
        let folder = if name.kind == RepoKind::Data { "datasets/" } else { "" };
        let url = format!("{}/{folder}{}/resolve/{commit}/{}", self.endpoint, name.repository, encoded(file, true));
        let ask = |url: &str| self.agent.head(url).header("Accept-Encoding", "identity");
        let (mut url, mut answer) = (url, None);
        for _ in 0..REDIRECTS {
            let found = self.once(&url, name, &ask)?;
            let headers = found.headers();
            // The Hub's own response has the metadata; the storage it redirects to may lack them.
            let linked = ["x-linked-etag", "x-linked-size"].iter().all(|name| headers.contains_key(*name));
            let pointed = linked || !found.status().is_redirection();
            let next = text(headers, "location").map(|to| joined(&url, to)).unwrap_or(url.clone());
            if pointed {
                answer = Some((found, next));
                break;
            }
            url = next;
        }
        let Some((found, url)) = answer else { return Err(too_many_redirects(&url)) };
        let headers = found.headers();
        let etag = text(headers, "x-linked-etag").or_else(|| text(headers, "etag")).map(plain).unwrap_or_default();
        let size = text(headers, "x-linked-size").or_else(|| text(headers, "content-length"));
        let size = size.and_then(|size| size.parse().ok());
        // The ETag becomes a file name.
        let usable = !etag.is_empty() && etag.len() <= 128 && etag.bytes().all(|byte| byte.is_ascii_alphanumeric());
        match (usable, size) {
            (true, Some(size)) => Ok(FileMetadata { etag: etag.to_string(), size, url }),
            _ => Err(HubFailure::Permanent(format!(
                "{url}: the response has no usable ETag and size ({etag:?}, {size:?}), so it is not from the Hugging \
                 Face Hub: check HF_ENDPOINT"
            ))),
        }
    }

    /// Requests a file from byte `from`. The flag is false if the server sends the file from its start instead.
    pub(super) fn content(
        &self,
        name: &Name,
        head: &FileMetadata,
        from: u64,
    ) -> Result<(bool, impl Read + use<>), HubFailure> {
        let ask = |url: &str| {
            let request = self.agent.get(url).header("Accept-Encoding", "identity");
            if from > 0 { request.header("Range", format!("bytes={from}-")) } else { request }
        };
        let (url, answer) = self.follow(&head.url, name, &ask)?;
        let goes_on = match answer.status().as_u16() {
            206 => {
                let range = text(answer.headers(), "content-range").unwrap_or_default();
                if !range.starts_with(&format!("bytes {from}-")) {
                    return Err(HubFailure::Permanent(format!("{url}: requested bytes from {from}, got {range:?}")));
                }
                true
            }
            _ => from == 0,
        };
        Ok((goes_on, answer.into_body().into_reader()))
    }

    /// Send a request and follows redirects; return the final URL and the response.
    fn follow(&self, url: &str, name: &Name, ask: Ask) -> Result<(String, Response<Body>), HubFailure> {
        let mut url = url.to_string();
        for _ in 0..REDIRECTS {
            let answer = self.once(&url, name, ask)?;
            match text(answer.headers(), "location").filter(|_| answer.status().is_redirection()) {
                Some(next) => url = joined(&url, next),
                None => return Ok((url, answer)),
            }
        }
        Err(too_many_redirects(&url))
    }

    /// Send a single request. The token is sent to the Hub only, not to hosts that it redirects to.
    fn once(&self, url: &str, name: &Name, ask: Ask) -> Result<Response<Body>, HubFailure> {
        let own = origin(url) == origin(&self.endpoint);
        let mut request = ask(url);
        if let Some(token) = self.token.as_ref().filter(|_| own) {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        let answer = request.call().map_err(|error| unreachable(url, &error))?;
        match answer.status().as_u16() {
            200..=399 => Ok(answer),
            // An expired storage link: a retry gets a new one from the Hub.
            status if !own => Err(HubFailure::Transient(format!("{} responds with status {status}", origin(url)))),
            status => Err(self.refusal(url, name, status, answer.headers())),
        }
    }

    /// Explain an error status of the Hub, and how to resolve it.
    fn refusal(&self, url: &str, name: &Name, status: u16, headers: &HeaderMap) -> HubFailure {
        let (code, said) = (text(headers, "x-error-code"), text(headers, "x-error-message").unwrap_or_default());
        let (endpoint, repository) = (&self.endpoint, &name.repository);
        let page = if name.kind == RepoKind::Data { "/datasets" } else { "" };
        let token = match self.token {
            Some(_) => "the token (HF_TOKEN, or the token file in HF_HOME) has no access to it or has expired",
            None => "if it is private, set HF_TOKEN to a token with access to it",
        };
        let said = if said.is_empty() { String::new() } else { format!(" ({said})") };
        let permanent = |message: String| HubFailure::Permanent(format!("{message}{said}"));
        match (status, code) {
            (_, Some("GatedRepo")) => permanent(format!(
                "is gated: accept its terms at {endpoint}{page}/{repository}, and set HF_TOKEN to a token of the \
                 account that accepted them"
            )),
            (404, Some("RevisionNotFound")) => permanent(format!(
                "has no revision {:?}: see the list at {endpoint}{page}/{repository}",
                name.revision()
            )),
            (404, Some("EntryNotFound")) => permanent(format!("{url}: no such file")),
            (401, _) => permanent(format!(
                "the Hub responds with status 401: the repository does not exist or is not public (if you meant a \
                 local path, it does not exist); {token}"
            )),
            (403, _) => permanent(format!(
                "the Hub responds with status 403: {token}; if the repository is gated, accept its terms at \
                 {endpoint}{page}/{repository}"
            )),
            (404, _) => permanent(format!(
                "the Hub has no such repository or revision: check owner, name and revision (if you meant a local \
                 path, it does not exist); {token}"
            )),
            (408 | 425 | 429 | 500..=599, _) => {
                HubFailure::Transient(format!("{url} responds with status {status}{said}"))
            }
            _ => permanent(format!("{url} responds with status {status}")),
        }
    }
}

/// Builds a request for a URL.
type Ask<'a> = &'a dyn Fn(&str) -> ureq::RequestBuilder<WithoutBody>;

fn unreachable(url: &str, error: &ureq::Error) -> HubFailure {
    let message = format!("{url}: {error}");
    match error {
        ureq::Error::BadUri(_) | ureq::Error::Http(_) | ureq::Error::Tls(_) => HubFailure::Permanent(message),
        _ => HubFailure::Transient(message),
    }
}

fn too_many_redirects(url: &str) -> HubFailure {
    HubFailure::Permanent(format!("{url}: more than {REDIRECTS} redirects"))
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Return an ETag without quotes and weak prefix.
fn plain(etag: &str) -> &str {
    etag.trim_start_matches("W/").trim_matches('"')
}

/// Return scheme, host and port of a URL.
fn origin(url: &str) -> &str {
    let host = url.find("://").map_or(0, |at| at + 3);
    &url[..url[host..].find(['/', '?']).map_or(url.len(), |end| host + end)]
}

/// Resolve the redirect location `to` relative to `url`.
fn joined(url: &str, to: &str) -> String {
    match to {
        to if to.contains("://") => to.to_string(),
        to if to.starts_with('/') => format!("{}{to}", origin(url)),
        to => format!("{}/{to}", url.rsplit_once('/').map_or(url, |(folder, _)| folder)),
    }
}

/// Percent-encodes a path for a URL.
fn encoded(path: &str, keep_slashes: bool) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) || (keep_slashes && byte == b'/');
    let each = |byte: u8| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    path.bytes().map(each).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_put_together_and_taken_apart() {
        assert_eq!(encoded("a b/ü.jsonl", true), "a%20b/%C3%BC.jsonl");
        assert_eq!(encoded("refs/pr/1", false), "refs%2Fpr%2F1");
        assert_eq!(origin("https://hub:8080/a/b?c"), "https://hub:8080");
        assert_eq!(origin("http://hub"), "http://hub");
        assert_eq!(joined("http://a/b/c", "/d"), "http://a/d");
        assert_eq!(joined("http://a/b/c", "d"), "http://a/b/d");
        assert_eq!(joined("http://a/b/c", "http://e/d"), "http://e/d");
        assert_eq!(plain("W/\"abc\""), "abc");
    }
}
