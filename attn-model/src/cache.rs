use std::env;
use std::path::PathBuf;

/// Where fetched models are kept: `$ATTN_CACHE_DIR`, else `$XDG_CACHE_HOME/attn`, else
/// `~/.cache/attn`. None where no variable says where the home is.
pub fn cache_dir() -> Option<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let home = || set("HOME").or_else(|| set("USERPROFILE")).map(|home| home.join(".cache"));
    set("ATTN_CACHE_DIR")
        .or_else(|| set("XDG_CACHE_HOME").or_else(home).map(|cache| cache.join("attn")))
}
