"Panels in notebooks, and the page of them"
