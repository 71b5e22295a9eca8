// Opened as a file, a browser loads no modules: say so instead of standing still.
if (location.protocol === 'file:') addEventListener('DOMContentLoaded', () => {
  document.getElementById('error').textContent =
    'This page has to be served: run “python -m http.server” in its folder, and open http://localhost:8000/. ' +
    'サーバー経由で開いてください：このフォルダーで「python -m http.server」を実行し、http://localhost:8000/ を開きます。';
});
