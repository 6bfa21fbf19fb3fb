// What stays in this browser after a reload: IndexedDB with the images, and with values by name.

const NAME = "syzygy";
let opened = null;

function database() {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("images", { keyPath: "id" });
      request.result.createObjectStore("values");
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return opened;
}

/** The result of one request to a store, when its transaction is complete. */
async function done(store, mode, act) {
  const transaction = (await database()).transaction(store, mode);
  const request = act(transaction.objectStore(store));
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve(request.result);
    transaction.onabort = transaction.onerror = () => reject(transaction.error);
  });
}

export const allImages = () => done("images", "readonly", (store) => store.getAll());
export const putImage = (image) => done("images", "readwrite", (store) => store.put(image));
export const removeImage = (id) => done("images", "readwrite", (store) => store.delete(id));
export const clearImages = () => done("images", "readwrite", (store) => store.clear());
export const getValue = (name) => done("values", "readonly", (store) => store.get(name));
export const putValue = (name, value) => done("values", "readwrite", (store) => store.put(value, name));
export const removeValue = (name) => done("values", "readwrite", (store) => store.delete(name));
