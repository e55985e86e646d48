"""One function a page: parameters in, a `View` out."""
