"""MLflow: runs, versions, requests and what is stored with them."""
